"""Guidance scale x rescaling, on the networks that `launch/brightness` has trained: contrast, clipped pixels, distances.

    noisesched compare --config=configs/study_guidance.py --out=comparisons/guidance \\
                       --config.workdirs="('comparisons/brightness/runs/repaired_v_v/seed0',)"
"""

from configs import study_brightness

PHIS = (0, 0.5, 0.7, 1)  # how much of each sample's standard deviation is restored; Lin et al. 2023 advise 0.7


def get_config():
    config = study_brightness.get_config()
    del config.runs
    config.runs = {}
    config.spacings = ("trailing",)
    config.calls = (25,)
    config.guidances = ("none", *(f"cfg({scale}, rescaled({phi}))" for scale in (2, 4, 7.5) for phi in PHIS))
    config.likelihood = ""
    return config
