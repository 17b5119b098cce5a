"""What may differ from the world a policy was trained in: scene, pictures, sentences."""
