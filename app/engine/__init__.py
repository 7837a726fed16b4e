"""What the editor does, without Streamlit: jobs, models, results. Pages only show it."""
