"""The study: what does telling the network the noise level, rather than the timestep, buy when the schedule changes?

    launch/study

Three ways to draw noise levels x three things to tell x three seeds, all on the digits with one network, one budget, the same
order of images and the same noise. About 80 minutes on 2 CPU cores; a killed study goes on where it was.
"""

from configs import compare, digits

CURVE = "linear(beta_min=0.1)"  # with the argument, tables follow the continuous curve; without it, the published betas
DRAWN = {  # the levels that training draws (the curve, or the steps of a table of it), and the table that timesteps refer to
    "continuous": ("linear", f"discrete({CURVE}, num_steps=1000)"),
    "t1000": (f"discrete({CURVE}, num_steps=1000)",) * 2,
    "t50": (f"discrete({CURVE}, num_steps=50)",) * 2,
}
TOLD = ("log_snr", "timestep", "none")


def get_config():
    config = compare.get_config()
    for drawn, (schedule, table) in DRAWN.items():
        for told in TOLD:
            run = digits.get_config()
            run.schedule = schedule
            run.conditioning.kind = told
            run.conditioning.table = table if told == "timestep" else ""
            run.model.width = 16
            run.model.attention = (4,)
            run.optimizer.learning_rate = 2e-3
            run.training.num_steps = 2000
            run.training.checkpoint_every = 2000
            run.preview.every = 2000
            run.preview.schedule = "linear"
            config.runs[f"{drawn}_{told}"] = run
    config.train_seeds = (0, 1, 2)

    # The first is the training curve. cosine, sigmoid and flow start at zero SNR, noisier than any table; karras and
    # flow end cleaner than the tables do.
    config.schedules = ("linear", "scaled_linear", "cosine", "sigmoid", "karras", "flow")
    config.calls = (5, 10, 25, 50)  # and 250, with one translation: see launch/study
    config.translations = ("nearest", "interpolated", "raw")
    config.outside = "clamp"
    config.metrics = (
        "frechet(classifier)",
        "frechet(raw)",
        "kernel(classifier)",
        "precision(classifier)",
        "recall(classifier)",
        "sliced_wasserstein(raw)",
        "brightness",
    )
    config.reference = "train+test"
    return config
