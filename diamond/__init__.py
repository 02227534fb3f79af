"""DIAMOND: Alonso, Jelley, Micheli, Kanervisto, Storkey, Pearce, Fleuret.

"Diffusion for World Modeling: Visual Details Matter in Atari", NeurIPS 2024, arXiv 2405.12399.
"""
