"""Which shift of the log-SNR is best at which resolution? One network for each size of the same photographs, a sweep of shifts.

    ln -s FOLDER photos                # FOLDER/train/class/*.jpg, for example CIFAR-10
    for size in 8 16 32; do
      noisesched compare --config=configs/study_resolution.py --out=comparisons/resolution_$size \\
                         --config.runs.photos.data.image_size=$size
    done
"""

from configs import compare, study_photos


def get_config():
    config = compare.get_config()
    run = study_photos.get_config().runs.continuous_log_snr
    run.schedule = "cosine"
    run.model.attention = ()  # the same network at every size
    run.optimizer.learning_rate = 2e-3
    run.training.num_steps = 2000
    run.training.checkpoint_every = 2000
    run.preview.every = 2000
    config.runs.photos = run
    # In steps of 2 log 2, by which the shift of Hoogeboom et al. (2023) changes from one size to the next.
    config.schedules = tuple(f"shifted(cosine, by={by})" for by in (-4.16, -2.77, -1.39, 0, 1.39, 2.77))
    config.calls = (10,)
    config.seeds = (0, 1, 2)
    config.num_images = config.likelihood_images = 512
    config.reference = config.likelihood = "train[90%:]"
    return config
