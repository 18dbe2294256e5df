"""Names that configs may use for stages, sets and variants."""

STAGES = ("prepare", "sample", "refine", "relabel", "train", "report")
TERMS = ("influence", "deviation", "transport")
REFINE_TARGETS = ("latents", "pixels", "decoder", "denoiser")
LABEL_MODES = ("stored", "online")
BASELINES = ("random", "random_decoded", "kmeans", "diffusion", "igd")
ABLATIONS = ("no_otg", "no_refine", "no_lia", "no_otm", "identity_plan")

# What each set of images is, in a table's words.
TITLES = {
    "ot_dd": "ot-dd: full method",
    "random": "random real images",
    "random_decoded": "random real images through the autoencoder",
    "kmeans": "real images nearest to k-means centroids",
    "diffusion": "plain diffusion samples",
    "igd": "IGD: influence and deviation guidance",
    "no_otg": "ot-dd without transport guidance",
    "no_refine": "ot-dd without refinement",
}
