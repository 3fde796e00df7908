"""What a network.json may say, checked before anything is allocated."""
