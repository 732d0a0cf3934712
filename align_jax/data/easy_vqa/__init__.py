"""easy-VQA: questions on coloured shapes, from the package `easy-vqa`."""
