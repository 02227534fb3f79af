"""V-JEPA 2-AC (Assran et al. 2025, arXiv 2506.09985, section 3) and the planning benchmarks that it is measured on:
a world model of actions in latent space, a planner, and Two Rooms, Wall, TwoRoom and PointMaze as code.
"""
