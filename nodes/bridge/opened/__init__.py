"""The user's models opened for a training: frozen, fit for autograd, and put back as they were."""
