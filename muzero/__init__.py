"""MuZero: Mastering Atari, Go, chess and shogi by planning with a learned model.

Schrittwieser et al., Nature 588, 604-609 (2020), arXiv 1911.08265; with Gumbel MuZero (Danihelka et al., ICLR 2022).
"""
