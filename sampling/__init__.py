"""Drawing images: options, batches, the sample folder, editing, pictures."""
