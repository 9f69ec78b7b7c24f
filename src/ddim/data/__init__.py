"""Reads and writes images: single files, folders, idx files, parquet files and data sets of the Hugging Face hub."""
