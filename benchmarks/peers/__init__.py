"""Other ways to do the same work, each as a competent user would write it, in one file."""
