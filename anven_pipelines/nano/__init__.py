"""The live demo world: two tiny real models, what they are trained on, and what serves and drives them."""
