"""Many engines behind one address, on Ray Serve: routed by the simulator's routers, as many as its autoscaler says."""
