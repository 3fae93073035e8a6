"""What a run leaves behind: its folder, the merged model, the adapter."""
