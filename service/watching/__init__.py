"""What is watched of a model's traffic: how much is flagged, how p-values are spread, and when that really changes.

All of it compares traffic with the calibration images, and so rests on exchangeability: in distribution, images come as
the calibration images came.
"""
