"""What a block goes through before and while its weights are solved: rewrites, and Hessians of their inputs."""
