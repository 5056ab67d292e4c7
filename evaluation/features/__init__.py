"""Images -> features: Inception by TensorFlow and by torch, and small classifiers of ours."""
