"""What is wrong with a schedule or a config, before anything is trained."""
