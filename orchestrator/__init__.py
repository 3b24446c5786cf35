"""Serverless for self-hosted language models."""
