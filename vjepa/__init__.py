"""V-JEPA: Bardes et al., "Revisiting Feature Prediction for Learning Visual Representations from Video".

TMLR 2024, arXiv 2404.08471; and V-JEPA 2: Assran et al., "V-JEPA 2: Self-Supervised Video Models Enable Understanding,
Prediction and Planning", arXiv 2506.09985.
"""
