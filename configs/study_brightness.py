"""The flaw of leaking schedules, and its repairs one by one: networks that have to make images of every brightness.

    launch/brightness                  # this, and what follows from the same networks: see there

Stable Diffusion's schedule and its zero-terminal version, each with the noise or v predicted (the noise not at zero SNR, which is
refused) and min-SNR or v weighting; and offset noise, the rival repair. All have the same network, budget, data
order and seeds, and are sampled under the schedule each was trained with, by both spacings.
"""

from configs import brightness, compare

LEAKING = "discrete(scaled_linear, num_steps=1000)"
REPAIRED = "discrete(scaled_linear, num_steps=1000, zero_terminal=True)"
# All networks are sampled under these, too: what happens below the last trained level, and other ways to end at zero SNR.
OTHERS = (LEAKING, REPAIRED, "discrete(scaled_linear, num_steps=1000, zero_terminal_snr=True)", "cosine", "flow")
RUNS = {  # training schedule, prediction, weighting, offset noise
    "leaking_eps_min_snr": (LEAKING, "eps", "min_snr", 0.0),
    "leaking_eps_v": (LEAKING, "eps", "v", 0.0),
    "leaking_v_min_snr": (LEAKING, "v", "min_snr", 0.0),
    "leaking_v_v": (LEAKING, "v", "v", 0.0),
    "repaired_v_min_snr": (REPAIRED, "v", "min_snr", 0.0),
    "repaired_v_v": (REPAIRED, "v", "v", 0.0),
    "offset_eps_min_snr": (LEAKING, "eps", "min_snr", 0.1),
}


def get_config():
    config = compare.get_config()
    for label, (schedule, prediction, weighting, noise_offset) in RUNS.items():
        run = brightness.get_config()
        run.schedule = schedule
        run.weighting = weighting
        run.noise_offset = noise_offset
        run.preview.every = 0
        run.model.prediction = prediction
        config.runs[label] = run
    config.train_seeds = (0, 1, 2)
    config.schedules = ("trained",)
    config.spacings = ("trailing", "leading")
    config.calls = (5, 10, 25, 50, 100)
    config.metrics = ("brightness", "frechet(classifier)", "frechet(raw)")
    config.reference = "train"
    config.likelihood_images = 256
    return config
