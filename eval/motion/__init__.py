"""How clips move: STREAM, dynamic degree, motion smoothness and temporal flickering.

Nothing is imported here, so that the table of metrics costs no torch.
"""
