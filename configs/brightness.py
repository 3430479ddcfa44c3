"""Digits at every brightness from black to white, 32x32: where a schedule that leaks signal at its last step goes wrong.

    noisesched train --config=configs/brightness.py --workdir=runs/brightness
    noisesched evaluate --workdir=runs/brightness --metrics brightness "frechet(classifier)"

The schedule is Stable Diffusion's, repaired; --config.schedule="discrete(scaled_linear, num_steps=1000)" is the flawed one.
"""

from configs import digits


def get_config():
    config = digits.get_config()
    config.data.name = "brightness"
    config.data.image_size = 32
    config.schedule = "discrete(scaled_linear, num_steps=1000, zero_terminal=True)"
    config.model.width = 16
    config.model.attention = (8,)
    config.training.batch_size = 32
    config.training.num_steps = 2000
    return config
