"""Data: what a user gives (texts, labelled rows, images, tensors) becomes batches."""
