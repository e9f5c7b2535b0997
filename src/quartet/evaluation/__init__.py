"""What a finished run is worth on held-out data: intervals, slices, calibration, mistakes, and a page that shows them."""
