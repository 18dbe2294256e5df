"""Fields that every config has, with the values most of them keep.

A config file starts from `base()` and says what differs. Sizes ending in `steps` are
optimisation steps; windows are step indices of the respaced schedule, the noisiest
being `num_steps - 1`; epsilons say their unit.
"""

from ml_collections import ConfigDict


def base(name: str) -> ConfigDict:
    """Returns the common config, to be changed by a config file."""
    config = ConfigDict()
    config.name = name
    config.seed = 0
    config.ipc = 10
    config.data = ConfigDict(
        dict(
            source=name,
            data_dir="",
            image_size=0,
            validation_fraction=0.1,
            test_fraction=0.2,
            seed=0,
            max_per_class=0,
            in_memory_gb=8.0,
            augment=dict(
                crop_scale=(0.5, 1.0), crop_ratio=(0.75, 1.333), flip=True, jitter=0.0,
                cutmix=1.0, cutmix_alpha=1.0, shift=0,
            ),
        )
    )  # fmt: skip
    optimiser = dict(
        batch_size=64, learning_rate=1e-3, weight_decay=0.0, ema=0.995, save_every=500
    )
    config.autoencoder = ConfigDict(
        dict(
            optimiser, model="autoencoder_small", options=ConfigDict(), steps=2000,
            l1_weight=1.0, mse_weight=1.0, kl_weight=1e-4, feature_weight=0.1,
            feature_teachers=1, padded_size=0,
            # A directory of `python -m ot_dd.convert` instead of training, and what its
            # latents are multiplied by before diffusion.
            weights="", latent_scale=0.18215,
        )
    )  # fmt: skip
    config.denoiser = ConfigDict(
        dict(
            optimiser, model="dit", options=ConfigDict(), steps=2000,
            parametrization="velocity", label_dropout=0.1, guidance_scale=1.5,
            # Of the baselines diffusion and minimax, which nothing else steers (0: as above).
            plain_guidance_scale=0.0,
            cfg_channels=0, dtype="float32",
            # Converted weights, and the network's class of each of the data's, in order.
            weights="", class_ids=(),
        )
    )  # fmt: skip
    config.teachers = ConfigDict(
        dict(
            optimiser,
            models=("convnet3",),
            options=ConfigDict(),
            steps=1000,
            weights=ConfigDict(),
        )
    )
    config.teachers.weight_decay = 1e-2
    config.surrogate = ConfigDict(
        dict(
            model="convnet3", options=ConfigDict(), steps=500, epochs=20,
            batch_size=64, learning_rate=1e-2, gradient_images=200, checkpoints=4,
            similarity_threshold=0.7, save_every=500,
        )
    )  # fmt: skip
    config.sampler = ConfigDict(
        # group: images of a class made together; 1 is greedy, 0 joint (all of them).
        dict(name="flow", num_steps=20, group=0, class_batch=0)
    )
    config.guidance = ConfigDict(
        dict(
            # What the full method uses; the baseline IGD takes the first two.
            terms=("influence", "deviation", "transport"),
            # A gradient that is not finite: stop, or skip it for its sample and count.
            not_finite="stop",
            influence=dict(strength=0.0, window=(14, 19), normalise="rms"),
            deviation=dict(strength=0.0, window=(14, 19), normalise="raw"),
            transport=dict(
                strength=0.3, window=(14, 19), normalise="raw", cost_fn="sqeuclidean",
                epsilon=0.02, epsilon_unit="mean_cost", num_iters=30, space="clean",
                num_real=256,
            ),
        )
    )  # fmt: skip
    config.refine = ConfigDict(
        dict(
            # start: what is refined, "sampled" or a baseline's set (`random`, `kmeans`).
            start="sampled",
            optimise="latents", rank=0, steps=200, learning_rate=0.05, clip=0.0,
            features=("fresh:convnet",), width=48, depth=3, divergence="sinkhorn",
            cost_fn="sqeuclidean", epsilon=10.0, num_iters=20, real_batch=64,
            # epsilon_end: where epsilon goes to, geometrically (0: it stays); tau: how
            # strictly marginals are kept (1: balanced); pool: networks of every kind
            # that are not trained, whose features of all real images are kept, for
            # real batches of thousands (0: new networks in every step).
            epsilon_end=0.0, tau=1.0, pool=0,
            # views: augmented copies of every synthetic image in a step; anchor_weight: of
            # the squared way from the start; class_weight_by_ipc: of the cross-entropy
            # of the trained networks among `features` (IDM: Zhao et al., CVPR 2023),
            # (least IPC, weight) pairs as in `lia`.
            views=1, anchor_weight=0.0, class_weight_by_ipc=((1, 0.0),),
            save_every=50,
        )
    )  # fmt: skip
    config.parallel = ConfigDict(
        # replicate, or fsdp: parameters and optimiser states split over the devices.
        dict(strategy="replicate")
    )
    config.lia = ConfigDict(
        # (least IPC, teachers) pairs: the last whose IPC is not above the run's.
        dict(
            teachers_by_ipc=((1, 1),), auto=False, mode="stored", views=0,
        )
    )  # fmt: skip
    config.student = ConfigDict(
        dict(
            model="convnet3", options=ConfigDict(), steps=300, batch_size=100,
            # decays: (share of the run, factor) pairs of a step schedule; without any
            # it is the smoothing cosine.
            optimiser="adamw", learning_rate=3e-3, weight_decay=0.01, zeta=2.0,
            decays=(), ema=0.99, ce_weight=0.025, mse_weight=1.0, kl_weight=0.0,
            kl_temperature=20.0, ot_weight=0.1, temperature=2.0, epsilon=0.1,
            num_iters=20, plan="sinkhorn", evaluations=3,
            # dsa: hard labels with DSA's augmentation in place of data.augment's; it
            # mirrors images where that does.
            dsa=False,
        )
    )  # fmt: skip
    config.study = ConfigDict(
        dict(
            num_sets=3, num_students=3, labels=("hard", "soft"),
            baselines=("random", "random_decoded", "kmeans", "diffusion", "igd"),
            ablations=("no_otg", "no_refine", "no_lia", "no_otm", "identity_plan"),
            transport_points=1000,
        )
    )  # fmt: skip
    config.lock()  # A field that is misspelt is an error, where a file sets it.
    for part in (config.autoencoder, config.denoiser, config.teachers, config.surrogate,
                 config.student):  # fmt: skip
        part.options.unlock()  # Whatever the model has.
    config.teachers.weights.unlock()
    return config


def shrink(config: ConfigDict) -> ConfigDict:
    """Turns a config into its `:debug` size: every stage runs, nothing is learnt well."""
    for part in ("autoencoder", "denoiser", "teachers"):
        config[part].steps, config[part].batch_size = 6, 8
    config.surrogate.steps, config.surrogate.epochs = 6, 3
    config.surrogate.gradient_images, config.surrogate.checkpoints = 4, 2
    config.sampler.num_steps = 4
    for term in config.guidance.values():
        if isinstance(term, ConfigDict):
            term.window = (2, 3)
    config.guidance.transport.num_real = 8
    config.ipc = 2
    config.refine.steps, config.refine.real_batch = min(config.refine.steps, 3), 4
    config.student.steps, config.student.evaluations = 6, 2
    config.student.batch_size = min(config.student.batch_size, 10)
    config.study.num_sets = config.study.num_students = 2
    config.study.transport_points = 20
    return config
