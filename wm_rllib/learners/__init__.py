"""What happens in learners: the world model's fit, the exact merge, PPO, and the judgement of M."""
