"""One model on several devices: each rank has a share of every layer's heads and columns, and runs the same steps."""
