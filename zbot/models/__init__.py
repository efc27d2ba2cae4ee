"""Model files that come with zbot, and the manifests of those that do not."""
