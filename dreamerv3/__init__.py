"""DreamerV3: Mastering Diverse Domains through World Models.

Hafner, Pasukonis, Ba, Lillicrap, arXiv 2301.04104 v2 (2024) and Nature 640, 647-653 (2025).
"""
