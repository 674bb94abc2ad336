"""S3PRL upstream of Lamer-SSL models."""
