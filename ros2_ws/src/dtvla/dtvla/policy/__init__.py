"""The policy itself: bundle, prompt, images, decoding, codec. No ROS, no torch."""
