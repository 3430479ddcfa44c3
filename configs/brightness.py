"""Digits at every brightness from black to white, 32x32: what a schedule that leaks signal at its last step cannot make.

    noisesched train --config=configs/brightness.py --workdir=runs/brightness
    noisesched evaluate --workdir=runs/brightness --metrics brightness "frechet(classifier)"

About 5 minutes of a core. The schedule is Stable Diffusion's rescaled to zero terminal SNR; the original, which leaks, is
--config.schedule="discrete(scaled_linear, num_steps=1000)".
"""

from configs import digits


def get_config():
    config = digits.get_config()
    config.data.name = "brightness"
    config.data.image_size = 32
    config.schedule = "discrete(scaled_linear, num_steps=1000, zero_terminal=True)"
    config.model.width = 8
    config.model.multipliers = (1, 2, 4)
    config.model.attention = (8,)
    config.model.num_classes = 11  # the digits, and flat images
    config.optimizer.learning_rate = 5e-3  # high, for a narrow network
    config.training.batch_size = 32
    config.training.num_steps = 1500
    return config
