"""The Celery worker: claims jobs, runs the model, keeps drafts, delivers them."""
