"""The doubting half: the same models in the official torch classes, on any device."""
