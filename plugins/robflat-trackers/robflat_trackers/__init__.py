"""TensorBoard and MLflow as observers of robflat-bench's runs."""
