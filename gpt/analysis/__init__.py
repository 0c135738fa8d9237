"""What a run will cost and where its time goes, and a gradient check of whole models."""
