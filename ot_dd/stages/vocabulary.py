"""Names that configs may use for stages, sets and variants."""

from ot_dd.diffusion import steering

TERMS = steering.NAMES  # Of guidance.
STAGES = ("prepare", "sample", "refine", "relabel", "train", "report")
REFINE_TARGETS = ("latents", "pixels", "decoder", "denoiser")
DIVERGENCES = ("sinkhorn", "distance", "mean")
LABEL_MODES = ("stored", "online")
BASELINES = (
    "random", "random_decoded", "kmeans", "kmeans_features", "herding", "kcenter",
    "el2n", "forgetting", "collage", "prototypes", "quantised", "d4m", "diffusion",
    "minimax", "igd",
)  # fmt: skip
# Baselines of real images that need neither latents nor diffusion.
WITHOUT_GENERATOR = ("random", "kmeans_features", "herding", "kcenter", "collage")

# What refinement may start from: anything that has latents.
STARTS = ("sampled", *(name for name in BASELINES if name != "collage"))


def _early(config) -> tuple[int, int]:
    """Returns the noisiest two fifths of the sampler's steps."""
    steps = config.sampler.num_steps
    return steps * 3 // 5, steps - 1


# Ablations of the images: the full method with these fields changed, to a value or to
# what a function makes of the config.
CHANGES = {
    "no_otg": {"guidance.transport.strength": 0.0},
    "no_refine": {"refine.steps": 0},
    "mean_matching": {"refine.divergence": "mean"},
    "balanced_transport": {"refine.epsilon": 10.0, "refine.tau": 1.0},
    "sharp_transport": {"refine.epsilon": 0.1, "refine.tau": 1.0},
    "greedy": {"sampler.group": 1},
    "noisy_latents": {"guidance.transport.space": "noisy"},
    "feature_guidance": {"guidance.transport.space": "features"},
    "l1_cost": {"guidance.transport.cost_fn": "l1"},
    "weak_guidance": {
        "guidance.transport.strength": lambda c: c.guidance.transport.strength / 4
    },
    "strong_guidance": {
        "guidance.transport.strength": lambda c: c.guidance.transport.strength * 4
    },
    "early_guidance": {"guidance.transport.window": _early},
    "early_no_refine": {"guidance.transport.window": _early, "refine.steps": 0},
    "real_start": {"refine.start": "kmeans_features"},
}
# Ablations of labels and loss: the full method's images, learned from otherwise.
VARIANTS = {
    "no_lia": "without LIA",
    "no_otm": "without OT matching",
    "identity_plan": "identity plan instead of OT",
}
ABLATIONS = (*CHANGES, *VARIANTS)

# The share of the schedule that D4M noises its prototypes to: the authors' 0.7.
D4M_STRENGTH = 0.7

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
    "forgetting": "real images that the surrogate never learned, or forgot most often",
    "collage": "RDED: the easiest patches of real images",
    "prototypes": "decoded k-means centroids",
    "d4m": "D4M: k-means centroids, noised and sampled anew",
    "quantised": "DDOQ: k-means centroids, noised and sampled anew, weighted",
    "diffusion": "plain diffusion samples",
    "minimax": "MinimaxDiffusion: samples of a fine-tuned denoiser",
    "igd": "IGD: influence and deviation guidance",
    "no_otg": "ot-dd without transport guidance",
    "no_refine": "ot-dd without refinement",
    "mean_matching": "ot-dd, refinement by class means instead of transport",
    "balanced_transport": "ot-dd, refinement at epsilon 10 with strict marginals",
    "sharp_transport": "ot-dd, refinement at epsilon 0.1 with strict marginals",
    "greedy": "ot-dd, images guided one by one instead of jointly",
    "noisy_latents": "ot-dd, transport of noisy latents, not of clean predictions",
    "feature_guidance": "ot-dd, transport of features, not of clean predictions",
    "l1_cost": "ot-dd, l1 cost in guidance",
    "weak_guidance": "ot-dd, a quarter of the guidance's strength",
    "strong_guidance": "ot-dd, four times the guidance's strength",
    "early_guidance": "ot-dd, guidance in the noisiest two fifths of steps",
    "early_no_refine": "ot-dd, guidance in the noisiest two fifths, no refinement",
    "real_start": "ot-dd, refinement of real images (k-means of features), not of samples",
    "no_lia": "ot-dd, labels by all teachers, or by one where LIA takes all (no LIA)",
    "no_otm": "ot-dd, no transport in the student loss (no OTM)",
    "identity_plan": "ot-dd, identity plan instead of OTM's",
}
