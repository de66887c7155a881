"""A page of Streamlit whose texts the server computes."""

import streamlit as st

count = st.slider("Count", 0, 10, 2)
st.write(f"Square: {count * count}")
if st.button("Say hello"):
    st.write("Hello from the server")
