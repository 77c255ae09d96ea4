"""Finds the learning rate of a training, of any technique, by the beginnings of that training at several rates."""
