"""What is trained for the learned baselines: U-Net, LOUPE, greedy policy gradient and SubPO."""
