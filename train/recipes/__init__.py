"""The recipes that Pressroom ships."""
