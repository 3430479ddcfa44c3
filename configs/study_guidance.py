"""Guidance scale x rescaling, on the worst and the best networks of `study_brightness`: contrast, clipped pixels, distances.

launch/brightness                  # which has the networks trained already
noisesched compare --config=configs/study_guidance.py --out=comparisons/guidance       # trains them
"""

from configs import study_brightness

CORRECTIONS = (  # the share of the standard deviation that is restored (Lin et al. 2023 advise 0.7); the last two keep the mean
    *(f"rescaled({phi})" for phi in (0, 0.5, 0.7, 1)),
    *(f"rescaled_contrast({phi})" for phi in (0.7, 1)),
)


def get_config():
    config = study_brightness.get_config()
    for label in list(config.runs):
        if label not in ("leaking_eps_min_snr", "repaired_v_v"):
            del config.runs[label]
    config.spacings = ("trailing",)
    config.calls = (25,)
    config.guidances = ("none", *(f"cfg({scale}, {correction})" for scale in (2, 4, 7.5) for correction in CORRECTIONS))
    config.likelihood = ""
    return config
