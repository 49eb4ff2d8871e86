"""Frames and files: videos and images in, clips out, written atomically."""
