"""The study of conditioning on photographs of 16x16 pixels: fewer networks, one seed. A folder or link `photos` holds them.

ln -s FOLDER photos                # FOLDER/train/class/*.jpg, for example CIFAR-10
noisesched compare --config=configs/study_photos.py --out=comparisons/photos && noisesched report --compare=comparisons/photos
"""

from configs import image_folder, study_conditioning


def get_config():
    config = study_conditioning.get_config()
    photos = image_folder.get_config()
    photos.data.path = "photos"
    photos.data.split = "train[:90%]"
    photos.data.image_size = 16
    photos.model.width = 24
    photos.model.multipliers = (1, 2, 2)
    photos.model.attention = (4,)
    photos.optimizer.learning_rate = 2e-3
    photos.training.batch_size = 32
    photos.training.num_steps = 3000
    photos.training.checkpoint_every = 3000
    photos.preview.every = 3000
    for name in list(config.runs):
        if name not in ("continuous_log_snr", "t1000_timestep", "t50_timestep"):
            del config.runs[name]
    for run in config.runs.values():
        for group in ("data", "model", "optimizer", "training", "preview"):
            run[group].update(photos[group])
    config.train_seeds = (0,)
    config.schedules = ("linear", "cosine", "karras", "flow")
    config.calls = (10, 25)
    config.translations = ("nearest", "raw")
    config.num_images = config.likelihood_images = 512
    config.reference = config.likelihood = "train[90%:]"
    return config
