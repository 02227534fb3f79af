"""World Models (Ha & Schmidhuber, 2018, arXiv 1803.10122): a VAE (V), an MDN-RNN (M) and a linear controller (C).

Doom: the controller is evolved inside the dream of M and then plays the real game. CarRacing: it is evolved there.
"""
