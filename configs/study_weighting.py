"""Weighting: does min-SNR train a better network than uniform weight on the noise? The same held-out measures for both.

noisesched compare --config=configs/study_weighting.py --out=comparisons/weighting
noisesched report --compare=comparisons/weighting      # loss profiles, bits per dimension, distances
"""

from configs import compare, digits


def get_config():
    config = compare.get_config()
    for name, weighting in {"uniform": "eps", "min_snr": "min_snr(gamma=5)", "v": "v"}.items():
        run = digits.get_config()
        run.weighting = weighting
        run.model.width = 16
        run.model.attention = (4,)
        run.optimizer.learning_rate = 2e-3
        run.training.num_steps = 2000
        run.training.checkpoint_every = 2000
        run.preview.every = 2000
        config.runs[name] = run
    config.train_seeds = (0, 1, 2)
    config.schedules = ("cosine", "linear")
    config.calls = (10, 25)
    config.reference = "train+test"
    return config
