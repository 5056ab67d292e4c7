"""A page in the browser to play with a model: draw, see how the images come about, edit."""
