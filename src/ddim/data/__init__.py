"""Pictures in and out: files, folders, archives."""
