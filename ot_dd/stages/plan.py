"""Names that configs may use for stages, sets and variants."""

STAGES = ("prepare", "sample", "refine", "relabel", "train", "report")
TERMS = ("influence", "deviation", "transport")
REFINE_TARGETS = ("latents", "pixels", "decoder", "denoiser")
LABEL_MODES = ("stored", "online")
BASELINES = (
    "random", "random_decoded", "kmeans", "kmeans_features", "herding", "kcenter",
    "el2n", "collage", "prototypes", "quantised", "diffusion", "igd",
)  # fmt: skip
ABLATIONS = ("no_otg", "no_refine", "no_lia", "no_otm", "identity_plan")

# What each set of images is, in a table's words.
TITLES = {
    "ot_dd": "ot-dd: full method",
    "random": "random real images",
    "random_decoded": "random real images through the autoencoder",
    "kmeans": "real images nearest to k-means centroids",
    "kmeans_features": "real images nearest to k-means centroids of features",
    "herding": "real images by herding",
    "kcenter": "real images by greedy k-center",
    "el2n": "easiest real images by EL2N",
    "collage": "RDED: collages of real patches",
    "prototypes": "decoded k-means centroids (D4M without its diffusion)",
    "quantised": "DDOQ: decoded k-means centroids, weighted",
    "diffusion": "plain diffusion samples",
    "igd": "IGD: influence and deviation guidance",
    "no_otg": "ot-dd without transport guidance",
    "no_refine": "ot-dd without refinement",
}
